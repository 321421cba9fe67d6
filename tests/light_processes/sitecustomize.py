"""Python imports a module of this name when it starts, in each process of an engine too."""

import light_processes

light_processes.begin()
