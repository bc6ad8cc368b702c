"""Ablations: the arms of a sweep file, trained and measured."""
