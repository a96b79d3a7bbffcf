"""Label and annotation keys of jobs and of the objects that the operator creates."""

JOB_NAME = "llmtrain.dev/job-name"
JOB_UID = "llmtrain.dev/job-uid"
ATTEMPT = "llmtrain.dev/attempt"
NODE_INDEX = "llmtrain.dev/node-index"
LEVEL_PREFIX = "llmtrain.dev/level-"
"""Prefix of a label of a pod: the name of a topology level follows. The value is the domain of the
pod's node at that level."""
MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY_VALUE = "llmtrain"
CONTROLLER_NAME = "llmtrain.dev/operator"
"""Value of `spec.managedBy` for this operator; also the default."""
FINALIZER = "llmtrain.dev/finalizer"
"""Finalizer that earlier versions of the operator set. Jobs have none any more."""
REPLACE = "llmtrain.dev/replace"
"""Annotation of a job, set by the user: the attempt to relocate to a better placement after the
next checkpoint."""
ALLOW_OVER_MEMORY = "llmtrain.dev/allow-over-memory"
"""Annotation of a job, set by the user: "true" accepts a job that does not fit by the plan."""

DOMAINS = ("llmtrain.dev", "kueue.x-k8s.io")
"""Domains of labels and annotations of pods that only the operator sets."""
NODE_ACCESS = (
    "cdi.k8s.io",
    "io.kubernetes.cri-o",
    "devices.gke.io",
    *(
        f"{kind}.{domain}"
        for kind in ("devices", "mounts", "cdi-devices")
        for domain in ("nri.io", "noderesource.dev")
    ),
)
"""Domains of annotations of pods by which a container runtime gives a pod devices or mounts of its
node that it does not request. Sources: the Container Device Interface (`cdi.k8s.io`), CRI-O
(`io.kubernetes.cri-o.Devices`), and the device injectors of containerd/nri and of GKE."""
CONFINEMENT = ("container.apparmor.security.beta.kubernetes.io",)
"""Domain of annotations that choose the AppArmor profile of a container, by its name. The API
server still takes the profile from there. Source: Kubernetes documentation, "Pod Security
Standards"."""
