"""The hot workspace: one log per writer, read by everybody.

`home` says where workspaces live, `private` holds those of one process, `keep` what may go.
"""
