"""Fault drills: real workloads, real servers, seeded random faults, and an auditor.

``python -m tests.faults --minutes 60 --seed 1`` is the long form; `tests/test_faults_drills.py`
runs some drills with every run of the tests.
"""
