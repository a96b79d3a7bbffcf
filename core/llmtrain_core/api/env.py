"""Names and paths of the pod contract between operator and trainer (docs/contract.md)."""

JOB_FILE = "LLMTRAIN_JOB_FILE"
RANKS = "LLMTRAIN_RANKS"
ATTEMPT = "LLMTRAIN_ATTEMPT"
POD_IP = "LLMTRAIN_POD_IP"
NODE_NAME = "LLMTRAIN_NODE_NAME"
PORT = "LLMTRAIN_PORT"
WORK_DIR = "LLMTRAIN_WORK_DIR"
TERMINATION_LOG = "LLMTRAIN_TERMINATION_LOG"
"""Overrides the path of the termination message, for pods that cannot write below /dev."""
METRICS = "LLMTRAIN_METRICS"
"""How many metrics the trainer exports: `basic` or `full`."""
RDMA = "LLMTRAIN_RDMA"
"""Whether the job uses RDMA: `required`, `preferred` (TCP if it is not possible), or not set."""
NETWORK_ROW = "LLMTRAIN_NETWORK_ROW"
"""Row of the table of networks that the placement has. Only for a job with `network.tuning`."""
HOME = "HOME"
"""Set to `TMP_PATH` if the root file system is read-only, unless the job sets it. Triton, CUDA,
Hugging Face libraries and matplotlib have their caches in it; inductor has its own one in /tmp."""
MASTER_ADDR = "MASTER_ADDR"
MASTER_PORT = "MASTER_PORT"
WORLD_SIZE = "WORLD_SIZE"
NODE_RANK = "NODE_RANK"
LOCAL_WORLD_SIZE = "LOCAL_WORLD_SIZE"
PET_NNODES = "PET_NNODES"
PET_NPROC_PER_NODE = "PET_NPROC_PER_NODE"
PET_NODE_RANK = "PET_NODE_RANK"
PET_MASTER_ADDR = "PET_MASTER_ADDR"
PET_MASTER_PORT = "PET_MASTER_PORT"

OWNED = frozenset(
    {
        JOB_FILE,
        RANKS,
        ATTEMPT,
        POD_IP,
        NODE_NAME,
        PORT,
        WORK_DIR,
        MASTER_ADDR,
        MASTER_PORT,
        WORLD_SIZE,
        NODE_RANK,
        LOCAL_WORLD_SIZE,
        PET_NNODES,
        PET_NPROC_PER_NODE,
        PET_NODE_RANK,
        PET_MASTER_ADDR,
        PET_MASTER_PORT,
        "RANK",
        "LOCAL_RANK",
        "LD_PRELOAD",
    }
)
"""Variables that a job cannot set: those of the operator, and those that would replace the code."""

PREFIX = "LLMTRAIN_"
"""Prefix of our own variables, which a job cannot set, except for those in `SETTABLE`."""

SETTABLE = frozenset({METRICS})
"""Variables with our prefix that a job may set in `workers.env`."""

RUNTIME_PREFIX = "NVIDIA_"
RUNTIME_SUFFIX = "_VISIBLE_DEVICES"
"""Variables by which container runtimes choose the devices that they give to a container. A value
of the user replaces that of the device plugin, so a job cannot set them."""

RESERVED_PREFIXES = (PREFIX, RUNTIME_PREFIX, "LD_", "AMD_", "ASCEND_", "HABANA_")
"""Starts of variables that `workers.envFrom` cannot have: the operator does not see the keys that
follow. The last three are those of container runtimes that read `RUNTIME_SUFFIX`."""

LIBRARY_VARIABLES = frozenset(
    {
        "NVIDIA_TF32_OVERRIDE",
        "CUDA_VISIBLE_DEVICES",
        "HIP_VISIBLE_DEVICES",
        "ROCR_VISIBLE_DEVICES",
        "ASCEND_RT_VISIBLE_DEVICES",
    }
)
"""Variables with such names that no container runtime reads. Libraries in the container read them,
and choose among the devices that the container has."""

JOB_FILE_NAME = "job.json"
GANG_KEY_NAME = "gang-key"
"""File beside the job file: 64 hexadecimal digits that the launchers of a gang share."""
JOB_FOLDER_PATH = "/etc/llmtrain"
JOB_FILE_PATH = f"{JOB_FOLDER_PATH}/{JOB_FILE_NAME}"
WORK_DIR_PATH = "/var/lib/llmtrain"
TMP_PATH = "/tmp"
SHM_PATH = "/dev/shm"
TERMINATION_LOG_PATH = "/dev/termination-log"
WRITABLE_PATHS = (WORK_DIR_PATH, TMP_PATH, SHM_PATH)
"""Folders that a pod can write besides its volumes, if its root file system is read-only."""
OWNED_PATHS = (JOB_FOLDER_PATH, WORK_DIR_PATH, TMP_PATH, "/dev", "/proc", "/sys")
"""Folders where a job cannot mount volumes: not there, not below, and not above."""
RUNTIME_PATHS = tuple(
    f"{folder}/{name}"
    for folder in ("/run", "/var/run")
    for name in ("nvidia-container-devices", "secrets/kubernetes.io")
)
"""The same for folders where the container runtime or the kubelet mounts something. The NVIDIA
runtime takes the names of files in the first one as the devices of the container."""
VOLUME_PREFIX = "llmtrain-"
"""Prefix of the operator's volume names; volumes of a job cannot have it."""
TRAINER_CONTAINER = "trainer"
"""Name of the container that trains. Init containers of a job cannot have it."""
HTTP_PORT = 9400
STATUS_PATH = "/status"
METRICS_PATH = "/metrics"
RENDEZVOUS_PORT = 29500

EXIT_EXCEPTION = 1
EXIT_INPUT = 2
EXIT_PEER_LOST = 200
EXIT_HUNG = 201
EXIT_GPU_ERROR = 202
EXIT_TRIAL_FAILED = 203
