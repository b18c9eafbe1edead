"""Certificates: proofs that a plan changes few answers, and the samples that they rest on."""
