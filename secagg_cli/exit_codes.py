"""What a command's exit code says.

====  ==============================================================================================
0     it did what was asked
1     it did not, and says why (in JSON: ``{"error": {"reason", "message", "remedy"}}``, beside what
      was done before)
2     the command line was wrong, or names what cannot be used
3     nobody was reached who could have answered, so nothing is said about what was asked
4     it did what was asked, but not with all that it was given (``join``)
130   Ctrl-C
====  ==============================================================================================
"""

from __future__ import annotations

EXIT_REFUSED = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INCOMPLETE = 4
EXIT_INTERRUPTED = 130
