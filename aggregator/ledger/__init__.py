"""The ledger of one service: its log, and the witnesses that are asked."""
