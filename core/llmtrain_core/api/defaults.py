"""Values of the API and of the pod contract that more than one component uses.

`tests/core/test_defaults.py` compares the defaults and bounds with the generated CRDs.
"""

GPU_RESOURCE = "nvidia.com/gpu"
"""Default of `spec.workers.gpuResource`."""
HUGE_PAGES = "hugepages-"
"""Start of the names of the resources for huge pages, before their size."""
SHM_SIZE = "1Gi"
"""Default of `spec.workers.shmSize`."""
FABRIC_NAME = "default"
"""Name of the Fabric of a job that names none."""

MAX_RESTARTS = 3
"""Default of `spec.failurePolicy.maxRestarts`."""
MAX_RESTARTS_IN_PLACE = 3
"""Default of `spec.failurePolicy.maxRestartsInPlace`."""
STARTUP_TIMEOUT = "10m"
"""Default of `spec.failurePolicy.startupTimeout`."""
HANG_TIMEOUT = "10m"
"""The trainer's value of `spec.failurePolicy.hangTimeout` when absent. The schema has no default,
because the field is refused for third-party trainers. A step of the largest models is a minute."""
EVALUATE_TOKENS = 262_144
"""Default of `spec.training.evaluateTokens`. A loss of 3 nats with a standard deviation as large
has a standard error of 0.006 then."""

MAX_NODES = 65536
"""Maximum number of nodes of a job."""
MAX_RESOURCES = 64
"""Kinds of resources of a pod that a placement stores."""
MAX_DRAINED_NODES = 16
"""Maximum number of entries in `status.move.nodes`."""
MAX_NETWORK_SETTINGS, MAX_NETWORK_NOTES = 64, 8
"""Maximum numbers of entries in `status.network.settings` and `.notes`."""
MAX_NCCL_DEVICES, NCCL_TEXT_LENGTH = 32, 64
"""Maximum number of devices in `status.network.nccl`, and length of its texts."""
MAX_FAILURES = 10
"""Maximum number of entries in `status.failures`."""
REASON_LENGTH = 128
"""Maximum length of a reason in conditions, failures and termination messages."""
MESSAGE_LENGTH = 1024
"""Maximum length of a message in conditions, failures and Events; metav1 would allow 32,768."""
CHAT_TEMPLATE_LENGTH = 300
"""Maximum length of `status.progress.chatTemplate`."""
MAX_COMMUNICATION_TRIALS = 16
"""Maximum number of entries in `status.progress.communication.trials`."""

MAX_NETWORK_TRIALS = 16
"""Maximum number of entries in `status.progress.networkTuning.trials`."""
MIN_TRIAL_STEPS, MAX_TRIAL_STEPS = 5, 1000
"""Bounds of `spec.training.steps` of a job with `spec.network.tuning`."""
LEAST_GAIN = 0.02
"""Share of the step time that another communication setting has to save. Less is within the
noise."""

FIRST_RETRYABLE_EXIT_CODE = 128
"""Exit codes from here on are signals, lost peers and hangs: the next attempt may succeed."""
MAX_XIDS = 8
"""Xids that a termination message carries at most."""
MAX_XID = 10_000
"""Bound of the code of an Xid."""
TERMINATION_GRACE_SECONDS = 30
"""Default and minimum of `spec.workers.terminationGracePeriodSeconds`."""
MAX_TERMINATION_GRACE_SECONDS = 120
"""Maximum of `spec.workers.terminationGracePeriodSeconds`. A stopped job holds its nodes for so
long, and the queue expects them back within this time."""
TERMINATION_MESSAGE_BYTES = 4096
"""Maximum size of a termination message; the kubelet drops the rest."""

SPEC_BYTES = 64 * 1024
"""Largest spec of a job that the operator accepts, as JSON without spaces."""
