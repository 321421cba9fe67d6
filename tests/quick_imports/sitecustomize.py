"""Python imports a module of this name when it starts, in each process of an engine too."""

import quick_imports

quick_imports.begin()
