"""What a reader of any report must know, and how each figure of it is computed again."""

from __future__ import annotations

from dp.report.data import Figure, Statement

READING = (
    Statement(
        name="Setting",
        text="Data stay on devices that run the published code. Masked sums leave a cohort; the "
        "aggregator can unmask a sum and nothing smaller, unless more devices help it than the "
        "task assumes. Each charged cohort is an access to the data of every device that owed it a "
        "vector.",
    ),
    Statement(
        name="What epsilon says",
        text="Whoever sees the releases, and of times no more than the row assumes, can raise the "
        "odds of any guess about one protected unit by a factor of at most e to the epsilon, but "
        "for a chance of delta. Epsilons of different rows answer different questions and are not "
        "comparable.",
    ),
    Statement(
        name="Who enforces it",
        text="Devices that run the published code clip, add the noise of their task and keep an "
        "account of their own, which refuses more rounds than the budget allows and gives nothing "
        "back. The aggregator's published code debits before it unmasks a sum; what devices and an "
        "aggregator did, no ledger shows.",
    ),
    Statement(
        name="What Verified means",
        text="The holder of this ledger's key signed these records, none was changed since, each "
        "has its form and keeps the rules that its task was signed with, and every epsilon and "
        "guaranteed noise that they state follows from them.",
    ),
    Statement(
        name="What it does not mean",
        text="That every cohort is recorded; that sizes of cohorts, numbers of survivors, times, "
        "digests of sums and models and the measured noise are true, which are the operator's "
        "word (the devices of a release check their own); that others are shown the same ledger, "
        "unless witnesses are named above; who is banned and why, and since when keys sign, which "
        "are the operator's word too; what devices ran, and how good the model is.",
    ),
    Statement(
        name="Accounting",
        text="Of what is recorded: the noise guaranteed by the survivors that each release's "
        "record counts, by Rényi divergences at integer orders, without any amplification in the "
        "headline, and rounded up. A task without noise has no epsilon.",
    ),
    Statement(
        name="Randomness",
        text="The published code draws noise in integers from AES-256-CTR under keys of the "
        "operating system's generator. What it lacks of the exact distribution, at most 2^-90 for "
        "each coordinate, is taken from delta. No floating point enters the proof.",
    ),
    Statement(
        name="Tuning",
        text="Runs that chose this task's parameters are in this account only if they are tasks of "
        "this ledger.",
    ),
)

FIGURES = (
    Figure(
        name="epsilon of a statement",
        value="the manifest in the task's record, and outcome and survivors of its release records "
        "in order; a charged cohort counts as one with the fewest survivors. With a period, of "
        "an example's releases the dearest, as many as releases over period, rounded up",
    ),
    Figure(
        name="amplified epsilon",
        value="the same, each release being a Poisson sample at sampling_rate (of devices: "
        "participation_rate); of examples, at delta less (1 + e^epsilon) times slot_overrun for "
        "each release",
    ),
    Figure(
        name="epsilon after each release",
        value="the same, from the release records up to that one; drawn at released_at",
    ),
    Figure(
        name="planned epsilon",
        value="the same, with releases_max releases of the fewest survivors",
    ),
    Figure(
        name="epsilon under replace-one",
        value="the same releases with both sensitivities doubled, never amplified",
    ),
    Figure(
        name="epsilon at another delta",
        value="the same divergences, converted at that delta",
    ),
    Figure(
        name="epsilon of all tasks together",
        value="a charge of every release record of every task, composed as one list, at the "
        "smallest delta of the tasks that make a statement, without amplification. An example: its "
        "task's own event; where a task clips whole devices alone, or persons, both sensitivities "
        "of one doubled. A device: "
        "its task's own event; where examples are clipped in the sum, the sensitivities of "
        "examples_max examples. A person or document: its task's own event, else a device's or, "
        "where devices alone are clipped, an example's. Without noise that protects the unit: "
        "without bound",
    ),
    Figure(
        name="budget left",
        value="max_epsilon of the manifest less the largest epsilon without amplification",
    ),
    Figure(
        name="releases left",
        value="releases_max of the manifest less the number of release records, charged ones too",
    ),
    Figure(
        name="clip",
        value="clip of the manifest's example or device privacy; an adaptive clip is that in the "
        "last release record before: the one before it times e to the power of -learning_rate "
        "times below_units over (scale of the segment below times denominator), kept in its range",
    ),
    Figure(
        name="noise over bound",
        value="share_variance times (survivors - silent_max), its root over the exact integer "
        "bound clip_units; with removable_drops what stays of a share, ceil(share_variance times "
        "honest_min / (masking_set_size - silent_max - t)), t the least level of at least as many "
        "drop-outs, in the place of share_variance",
    ),
    Figure(
        name="measured noise",
        value="measured_variance of the release's record over its noise_variance. The service "
        "measured the unmasked sum, which is not in the ledger: this is the operator's word",
    ),
    Figure(
        name="cohort, masking set, in the sum, dropped",
        value="cohort_size, masking_set_size and survivors of the release's record, the operator's "
        "word; dropped is "
        "cohort_size less survivors where there is a sum. Without one the record does not tell who "
        "had sent; version 1 does not tell its masking set either. The chart draws them in order",
    ),
    Figure(
        name="charges of single devices",
        value="masking_set_size of all charged cohorts, added up. Each record lists its masking "
        "set by pseudonyms of this cohort alone, those in the released sum under contributors, the "
        "others under not_in_sum; of many devices it holds the digest of their list, which the "
        "ledger serves beside it. Records of version 1 list the devices in the sum by their "
        "identity: of those, distinct entries; whom a cohort of version 1 without a sum charged is "
        "not recorded",
    ),
    Figure(
        name="parameters",
        value="fields of the manifest, which the task's record holds whole; those with a formula "
        "beside them follow from others, and the check derives them again",
    ),
)

RECOMPUTE = (
    "Bring the ledger's verifier key from outside the ledger: from the partner who "
    "enrolled the devices, never from the ledger itself.",
    "Run: secagg audit verify LEDGER --key VERIFIER_KEY --format json; for all figures here "
    "as data: secagg audit report LEDGER --key VERIFIER_KEY --out report.json",
    "It needs no network for a ledger folder. It takes the operator's word for which cohorts are "
    "recorded, their sizes, survivors, times, digests of sums and models, and the measured noise.",
    "It checks the signature, hashes every record, demands its form, and computes every epsilon "
    "again from the manifest in the task's record and the number of survivors in each release.",
    "The formulas: Skellam noise by Agarwal, Kairouz and Liu (2021); sums of discrete "
    "Gaussian shares by Kairouz, Liu and Steinke (2021), the first bound of Proposition "
    "14; Poisson sampling as Mironov, Talwar and Zhang (2019), for symmetric noise on the "
    "integers too (the proof is docs/sampling.md of the source code); conversion to "
    "(epsilon, delta) by "
    "Canonne, Kamath and Steinke (2020), Proposition 12; integer orders; rounded up.",
    "Whoever keeps older checkpoints can show by --older that the log was not rewritten since; "
    "--witness shows that others who ask those witnesses are shown the same one. What of this was "
    "not checked here stands above, under “Not checked here”.",
)
