"""tenantsync's own books: tenants that were added at run time, and who is suspended.

`tables` says what is kept, `database` opens it, `catalog` reads and writes it, and `directory` is
the one list of the file's tenants and the catalog's. Its migrations are run by
`tenantsync.migrate.control`.
"""
