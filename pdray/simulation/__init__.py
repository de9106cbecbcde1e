"""Discrete events over the shipped control code: only workers and time are made up."""
