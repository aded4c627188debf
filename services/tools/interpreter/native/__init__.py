"""CPython of the system, behind namespaces, Landlock, seccomp and limits."""
