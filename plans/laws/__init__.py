"""The laws that every family must satisfy, as code that runs on any loaded model.

for verdict in run(Case("my model", model, rows)):
    print(verdict.law.name, verdict.holds, verdict.detail)
"""

from tpcal.plans.laws.case import Case, collate
from tpcal.plans.laws.suite import LAWS, run
from tpcal.plans.laws.verdict import Law, Verdict

__all__ = ["LAWS", "Case", "Law", "Verdict", "collate", "run"]
