"""How preference tuning avoids an attribute of text: the case study of Lee et al. 2024."""
