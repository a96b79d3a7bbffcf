"""Sets of values that together use every value of the chart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Values = dict[str, Any]

LONG_NAMESPACE = "a-namespace-whose-name-is-as-long-as-a-name-may-be-63-characters"[:63]
NAMESPACES = (
    "llmtrain-system",
    "team-a",
    "team-b",
    "monitoring",
    "elsewhere",
    LONG_NAMESPACE,
    "123",
    "on",
)
"""All namespaces that the sets use."""
WATCHED = ["team-a", "team-b"]
RELABELING = {"sourceLabels": ["__meta_kubernetes_pod_name"], "targetLabel": "worker"}
DROP = {"sourceLabels": ["__name__"], "regex": "llmtrain_gpu_.*", "action": "drop"}
MONITOR: Values = {
    "enabled": True,
    "namespace": "monitoring",
    "labels": {"release": "prometheus"},
    "annotations": {"example.com/owner": "platform"},
    "interval": "15s",
    "scrapeTimeout": "10s",
    "honorLabels": True,
    "relabelings": [RELABELING],
    "metricRelabelings": [DROP],
    "endpointAdditionalProperties": {"scheme": "http"},
}
RULES: Values = {
    "enabled": True,
    "namespace": "monitoring",
    "labels": {"release": "prometheus"},
    "annotations": {"example.com/owner": "platform"},
    "runbookUrl": "https://example.com/runbooks/",
    "keepFiringFor": "5m",
    "additionalRuleLabels": {"team": "platform"},
    "additionalGroups": [{"name": "own", "rules": [{"record": "own:one", "expr": "vector(1)"}]}],
}
ALL_MONITORING: Values = {
    "serviceMonitor": {"enabled": True},
    "podMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboards": {"enabled": True},
}
CONFIG: Values = {
    "bind": "::",
    "metricsPort": 19090,
    "healthPort": 18080,
    "leaseDuration": 30,
    "renewDeadline": 20.5,
    "retryPeriod": 4,
    "progressSeconds": 2.5,
    "nodeLostSeconds": 45,
    "startReservation": 300,
    "domainTolerance": 0.02,
    "drainTimeout": 1800,
    "unknownStartWindow": 1800,
    "writesPerSecond": 2000000,
    "maxActiveJobs": 250,
    "maxExcludedNodesPercent": 2.5,
    "countForeignPods": False,
    "systemPriorityClasses": True,
    "allowPrivilegedPods": True,
    "logLevel": "DEBUG",
}
OPTIONAL_RIGHTS: Values = {
    "podGroups": True,
    "progressProxy": True,
    "deviceClaims": True,
    "computeDomains": True,
}
"""Values that need rights of their own."""
FABRIC = {
    "apiVersion": "llmtrain.dev/v1alpha1",
    "kind": "Fabric",
    "metadata": {"name": "default"},
    "spec": {"preset": "topograph"},
}
CONFIG_MAP = """
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ .Release.Name }}-notes
  namespace: {{ include "llmtrain.namespace" . }}
data: {image: '{{ include "llmtrain.image" . }}'}
"""

VALUE_SETS: Mapping[str, Values] = {
    "defaults": {},
    "replicas": {"replicas": 3},
    "no replicas": {"replicas": None},
    "one namespace": {"watchNamespaces": ["team-a"]},
    "two namespaces": {"watchNamespaces": WATCHED, "replicas": 2},
    "namespaces without foreign pods": {
        "watchNamespaces": WATCHED,
        "config": {"countForeignPods": False},
    },
    "long names": {
        "watchNamespaces": [LONG_NAMESPACE],
        "fullnameOverride": "a-prefix-of-names-that-is-longer-than-what-remains",
    },
    "names that are no texts in YAML": {
        "watchNamespaces": ["123", "on"],
        "namespaceOverride": "123",
        "nameOverride": "1e3",
        "serviceAccount": {"name": "0x1"},
        "priorityClass": {"create": True, "name": "12"},
        "serviceMonitor": {"enabled": True},
        "networkPolicy": {"enabled": True},
    },
    "large numbers": {"terminationGracePeriodSeconds": 1000000, "revisionHistoryLimit": 1000000},
    "optional rights": {"config": OPTIONAL_RIGHTS},
    "optional rights in namespaces": {"config": OPTIONAL_RIGHTS, "watchNamespaces": WATCHED},
    "own scrapers": {
        "jobNetworkPolicy": {
            "scrapers": [
                {
                    "namespaceSelector": {"matchLabels": {"team": "platform"}},
                    "podSelector": {"matchLabels": {"app": "prometheus"}},
                },
                {"ipBlock": {"cidr": "10.0.0.0/8"}},
            ]
        }
    },
    "no scrapers": {"jobNetworkPolicy": {"scrapers": []}, "watchNamespaces": WATCHED},
    "priority classes of the system": {"config": {"systemPriorityClasses": True}},
    "privileged pods": {"config": {"allowPrivilegedPods": True}},
    "no admission policy": {"admissionPolicy": {"enabled": False}},
    "kueue": {"config": {"kueue": True}},
    "all flags": {"config": CONFIG},
    "image by tag": {"image": {"registry": "registry.example.com", "tag": "1.2.3"}},
    "image by digest": {"image": {"digest": "sha256:" + "0" * 64, "pullPolicy": "Always"}},
    "global registry": {
        "global": {"imageRegistry": "mirror.example.com:5000/cache", "imagePullSecrets": ["a"]},
        "image": {"registry": "registry.example.com"},
        "imagePullSecrets": ["b", {"name": "a"}],
    },
    "values of a parent chart": {"enabled": True, "global": {"storageClass": "fast"}},
    "name": {"nameOverride": "trainer"},
    "full name": {"fullnameOverride": "gpu"},
    "another namespace": {"namespaceOverride": "elsewhere"},
    "common labels": {
        "commonLabels": {"example.com/team": "platform", "app.kubernetes.io/name": "not-used"},
        "commonAnnotations": {"example.com/contact": "platform@example.com"},
    },
    "no definitions": {"crds": {"install": False}},
    "definitions not kept": {"crds": {"keep": False}},
    "no roles": {"rbac": {"create": False}},
    "no roles of users": {"rbac": {"aggregateClusterRoles": False}},
    "existing service account": {"serviceAccount": {"create": False, "name": "existing"}},
    "default service account": {"serviceAccount": {"create": False}},
    "annotated service account": {"serviceAccount": {"annotations": {"example.com/role": "x"}}},
    "minimum available": {"replicas": 3, "podDisruptionBudget": {"minAvailable": "50%"}},
    "no disruption budget": {"podDisruptionBudget": {"enabled": False}},
    "priority class": {"priorityClass": {"create": True, "value": -5, "preemptionPolicy": "Never"}},
    "existing priority class": {"priorityClassName": "system-cluster-critical"},
    "any user": {"podSecurityContext": {"runAsUser": None, "runAsGroup": None}},
    "no fixed user": {"fixedUser": False, "podSecurityContext": {"fsGroup": 65532}},
    "pods": {
        "deploymentAnnotations": {"example.com/reload": "yes"},
        "podLabels": {"example.com/team": "platform", "app.kubernetes.io/name": "not-used"},
        "podAnnotations": {"example.com/scrape": "no"},
        "resources": {"limits": {"cpu": 2, "memory": "4Gi"}},
        "livenessProbe": {"initialDelaySeconds": 5, "failureThreshold": 5},
        "readinessProbe": {"timeoutSeconds": 1},
        "terminationGracePeriodSeconds": 10,
        "revisionHistoryLimit": 0,
    },
    "scheduling": {
        "nodeSelector": {"kubernetes.io/arch": "amd64"},
        "tolerations": [{"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "preferredDuringSchedulingIgnoredDuringExecution": [
                    {
                        "weight": 1,
                        "preference": {
                            "matchExpressions": [{"key": "gpu", "operator": "DoesNotExist"}]
                        },
                    }
                ]
            }
        },
        "topologySpreadConstraints": [
            {
                "topologyKey": "topology.kubernetes.io/zone",
                "maxSkew": 1,
                "whenUnsatisfiable": "DoNotSchedule",
            }
        ],
        "runtimeClassName": "gvisor",
    },
    "environment and volumes": {
        "extraEnv": [
            {"name": "HTTPS_PROXY", "value": "http://proxy.example.com:3128"},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "NUMBER", "value": "2"},
        ],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/ssl/own", "readOnly": True}],
    },
    "network policy": {"networkPolicy": {"enabled": True}},
    "network policy of namespaces": {
        "networkPolicy": {"enabled": True},
        "watchNamespaces": WATCHED,
    },
    "own network policy": {
        "networkPolicy": {
            "enabled": True,
            "ingress": [{"from": [{"namespaceSelector": {}}], "ports": [{"port": 9090}]}],
            "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}],
        }
    },
    "network policy and common labels": {
        "networkPolicy": {"enabled": True},
        "commonLabels": {"example.com/team": "platform"},
        "commonAnnotations": {"example.com/contact": "platform@example.com"},
        "topologySpreadConstraints": [
            {
                "topologyKey": "kubernetes.io/hostname",
                "maxSkew": 1,
                "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {"matchLabels": {"example.com/team": "platform"}},
            }
        ],
    },
    "closed network policy": {"networkPolicy": {"enabled": True, "ingress": [], "egress": []}},
    "no metrics service": {"metricsService": {"enabled": False}},
    "annotated metrics service": {
        "metricsService": {"labels": {"a": "b"}, "annotations": {"example.com/scrape": "yes"}}
    },
    "service monitor": {"serviceMonitor": MONITOR},
    "pod monitor": {"podMonitor": MONITOR},
    "monitors of namespaces": {**ALL_MONITORING, "watchNamespaces": WATCHED},
    "rules": {"prometheusRule": RULES},
    "rules of one alert": {
        "prometheusRule": {
            "enabled": True,
            "disabled": {"LLMTrainGpuIdle": True},
            "customRules": {"LLMTrainStepStalled": {"for": "1d", "severity": "info"}},
            "runbookUrl": "https://example.com/{alert}.md",
        }
    },
    "dashboards": {
        "dashboards": {
            "enabled": True,
            "namespace": "monitoring",
            "labels": {"grafana_dashboard": None, "dashboards": "yes"},
            "annotations": {"grafana_folder": "GPU"},
        }
    },
    "all monitoring": ALL_MONITORING,
    "more objects": {"extraObjects": [FABRIC, CONFIG_MAP]},
    "namespaces with roles of others": {"watchNamespaces": WATCHED, "rbac": {"create": False}},
}
