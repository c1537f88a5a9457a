"""Stages that repeat."""
