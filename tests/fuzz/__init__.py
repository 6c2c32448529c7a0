"""Fuzzing of what reads the words of servers and of lftp; see CONTRIBUTING.

A harness is a module with `run(data)`, which plays a script of bytes to the code under test and
raises when something happens that must not: an exception that is not the project's own, an outcome
told twice or never, bytes kept that were not sent, memory without a bound.
"""
