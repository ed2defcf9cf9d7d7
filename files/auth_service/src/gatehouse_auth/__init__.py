"""Gatehouse's authorization server and ForwardAuth check."""
