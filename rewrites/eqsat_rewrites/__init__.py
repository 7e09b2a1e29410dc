"""The rewrite rules of eqsat-deploy, one module per family."""
