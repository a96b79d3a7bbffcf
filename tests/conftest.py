from llmtrain_devcluster.fixtures import (  # noqa: F401
    api,
    control_plane,
    namespace,
    scripted_nodes,
)
