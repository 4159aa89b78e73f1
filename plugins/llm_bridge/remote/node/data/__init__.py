"""Conversion of data sets into the shape that verl trains on."""
