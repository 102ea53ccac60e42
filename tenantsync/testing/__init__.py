"""The test kit: a local AuthVital that signs and delivers as the real one, and fails on demand.

`emulator` is the way in; `people` makes payloads and whole streams, `wicked` spoils deliveries.
Nothing here imports the receiving half of tenantsync: two implementations of one written format.
"""
