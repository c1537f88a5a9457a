"""Stages that repeat: elicit, fit, evaluate, and again with the new student."""
