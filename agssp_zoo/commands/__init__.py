"""The sub-commands of ``agssp-zoo`` that need no training or export code; a module each, as agssp_zoo.cli explains."""
