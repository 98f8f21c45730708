"""Every limit of protocol 1: a number, its unit and its reason."""

PROTOCOL_VERSION = 1
SUITE = "MLKEM768X25519-HKDFSHA256-AES256GCM/Ed25519/AES256CTR"

DIGEST_BYTES = 32  # SHA-256
SEED_BYTES = 32  # one-use seeds of masks, 256 bits
IDENTITY_KEY_BYTES = 32  # Ed25519
SIGNATURE_BYTES = 64  # Ed25519
KEM_PUBLIC_KEY_BYTES = 1_216  # ML-KEM-768 (1,184) + X25519 (32)
SEAL_OVERHEAD_BYTES = 1_136  # encapsulation (1,088 + 32) + GCM tag (16)
SHARE_BYTES = 33  # an element of GF(2^256 + 297)

COHORT_MIN = 2  # a sum of one is that one
COHORT_MAX = 10_000  # devices; the roster then takes about 1.5 MB
COMPLETE_GRAPH_MAX = 128  # devices; beyond that a sparse graph costs less
DEGREE_MAX = 512  # neighbours; what a device sends and receives in step 2 is then 1.4 MB each way
SECURITY_BITS = 40  # a sparse graph fails to protect with probability 2^-40 per cohort at most
GRINDING_BITS = 64  # rosters that an aggregator may try for a circle that suits it, log2
CORRECTNESS_BITS = 20  # random drop-outs end a sparse cohort with probability 2^-20 at most
NOISE_LEVELS_MAX = 8  # removable parts of a device's noise, each a seed that is shared
VERSIONS_BACK_MAX = 64  # model versions that one cohort admits, beside the newest
PARTNERS_MAX = 128  # partners of one task; an advert names those that its device trusts

RING_BITS_MIN, RING_BITS_MAX = 8, 62  # sums must fit int64 after centring
VECTOR_LENGTH_MAX = 1 << 28  # coordinates, 1 GiB in 32-bit lanes
SLICE_LENGTH = 1 << 16  # data coordinates per slice; one check coordinate each

MANIFEST_BYTES_MAX = 1 << 20  # names of a few thousand LoRA tensors
ADVERT_BYTES_MAX = 8_192  # two public keys (2,432), certificate, trusted partners (4,352)
DEAL_BYTES_MAX = 8_192  # two seals, ten shares and their hashes
SMALL_MESSAGE_BYTES_MAX = 4_096  # check results, confirmations, uploads, aborts, receipts
EVIDENCE_BYTES_MAX = 12 << 20  # manifest, a roster of 10,000, deals to 512 neighbours
REVOKED_MAX = 100_000  # devices in one partner's revocation list
REVOCATION_BYTES_MAX = 4 << 20  # such a list
ADVERT_LIFETIME_MAX_S = 86_400  # a device that waits longer reports in anew
CLOCK_SKEW_S = 300  # seconds between a device's clock and the aggregator's or its partner's
