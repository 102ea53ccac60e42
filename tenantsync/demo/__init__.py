"""The demo: a recorded and a made-up stream, through the real endpoint, into tenants' databases.

`run` plays it, `expect` says independently how it must end; `recorded.jsonl` is what a running
AuthVital sent to three applications while people joined, worked and left.
"""
