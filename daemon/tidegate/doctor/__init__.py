"""Looks from outside for what is wrong with this computer; every finding says its fix."""
