"""Snakemake storage plugin: remote files over SFTP."""
