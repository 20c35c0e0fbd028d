"""Try, in seconds, whatever could fail after hours."""
def run(*a, **k):
    return {}
