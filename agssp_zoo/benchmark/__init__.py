"""What a detector costs on this machine: ``agssp-zoo benchmark``.

* :mod:`.worker`: one engine at one size, in a process of its own.
* :mod:`.runner`: starts the processes and lets them take turns.
* :mod:`.results`: medians and quartiles, and the JSON.
* :mod:`.chart`: the picture.
"""
