"""How tidegate becomes a service of this computer: unit files, plists, and those who start them."""
