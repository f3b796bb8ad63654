"""The health check: is a run all right, and if not, why?"""
