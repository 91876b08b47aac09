"""The demo: a token rotates through a real tree of workflows while they call a real API.

- `api`: the HTTP API on loopback, which issues, expires and revokes the tokens;
- `workflows`: the tree, and the activities that use the token or show that they have none;
- `live`: what the terminal shows meanwhile;
- `report`: what was counted afterwards, and in which records;
- `main`: one run from start to end, behind the command `stateful demo`.

It needs the extra ``demo``.
"""
