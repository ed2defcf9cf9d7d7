"""The protocol, on Authlib, without input or output.

Authlib's grants and endpoints are synchronous and ours is an asynchronous service. So each request is
decided in three steps: what the decision needs is loaded, Authlib decides on it alone, and what was decided
is committed in one atomic script. A request that fails before the last step has consumed nothing.
"""
