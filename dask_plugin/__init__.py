"""Remote inputs for Dask tasks."""
