"""What the programs beside this folder share: sides measured in turn, loops, counts, a judge."""
