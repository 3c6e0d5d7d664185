"""Instruction following: checks of the IFEval family and of IFBench."""
