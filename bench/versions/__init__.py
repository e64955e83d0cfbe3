"""Compare this version with another one."""
