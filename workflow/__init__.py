"""What the commands do, as functions of a program: make_profile, find_plan, evaluate, certify."""
