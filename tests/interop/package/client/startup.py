"""Nothing is needed beforehand."""
