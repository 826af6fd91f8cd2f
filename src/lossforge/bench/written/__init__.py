"""The measured losses as they are written by hand in each framework: what lossforge is compared with.

A module for each framework, with the same names in each: `huber`, `focal`, `cross_entropy`, `dice`, `info_nce`.
"""
