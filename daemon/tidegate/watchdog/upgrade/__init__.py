"""Becoming the program that lies on the disk now, with the same children and sockets."""
