"""What KubeRay accepts, for the fields that the manifests use.

KubeRay's own objects are written down here after the types of its ``ray.io/v1`` API, version 1.3
(its CRDs are made of those): a field that is not here is refused. What is Kubernetes' in them,
pod templates above all, is held against Kubernetes' own schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.33"
STRING, BOOLEAN = {"type": "string"}, {"type": "boolean"}
INT32 = {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1}
STRINGS = {"type": "object", "additionalProperties": STRING}
POD_TEMPLATE = {"type": "object", "required": ["spec"]}


def fields(*required: str, **properties: object) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


AUTOSCALER_OPTIONS = fields(
    resources={"type": "object"},
    image=STRING,
    imagePullPolicy=STRING,
    idleTimeoutSeconds=INT32,
    upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
    env={"type": "array"},
)
HEAD_GROUP = fields(
    "rayStartParams",
    "template",
    enableIngress=BOOLEAN,
    rayStartParams=STRINGS,
    serviceType=STRING,
    template=POD_TEMPLATE,
)
WORKER_GROUP = fields(
    "groupName",
    "minReplicas",
    "maxReplicas",
    "rayStartParams",
    "template",
    groupName=STRING,
    replicas=INT32,
    minReplicas=INT32,
    maxReplicas=INT32,
    idleTimeoutSeconds=INT32,
    numOfHosts=INT32,
    rayStartParams=STRINGS,
    template=POD_TEMPLATE,
)
CLUSTER = fields(
    "headGroupSpec",
    suspend=BOOLEAN,
    autoscalerOptions=AUTOSCALER_OPTIONS,
    headServiceAnnotations=STRINGS,
    enableInTreeAutoscaling=BOOLEAN,
    headGroupSpec=HEAD_GROUP,
    rayVersion=STRING,
    workerGroupSpecs={"type": "array", "items": WORKER_GROUP},
)
SERVICE = fields(
    upgradeStrategy=fields(type={"enum": ["NewCluster", "None"]}),
    serveConfigV2=STRING,
    rayClusterConfig=CLUSTER,
    excludeHeadPodFromServeSvc=BOOLEAN,
)
JOB = fields(
    activeDeadlineSeconds=INT32,
    backoffLimit=INT32,
    rayClusterSpec=CLUSTER,
    submitterPodTemplate=POD_TEMPLATE,
    metadata=STRINGS,
    clusterSelector=STRINGS,
    entrypoint=STRING,
    runtimeEnvYAML=STRING,
    jobId=STRING,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
    entrypointResources=STRING,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    ttlSecondsAfterFinished=INT32,
    shutdownAfterJobFinishes=BOOLEAN,
    suspend=BOOLEAN,
)
SPECS = {"RayCluster": CLUSTER, "RayService": SERVICE, "RayJob": JOB}
CLUSTER_KEY = {"RayService": "rayClusterConfig", "RayJob": "rayClusterSpec"}


def check(manifest: dict[str, Any]) -> None:
    """Raises ValidationError, jsonschema's or kubernetes_validate's."""
    if manifest["apiVersion"] != "ray.io/v1":
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        return
    schema = fields(
        "metadata",
        "spec",
        apiVersion=STRING,
        kind={"enum": list(SPECS)},
        metadata={"type": "object", "required": ["name"]},
        spec=SPECS[manifest["kind"]],
    )
    jsonschema.validate(manifest, schema)
    for template in pod_templates(cluster_of(manifest)):
        as_object = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}}
        kubernetes_validate.validate(as_object | {"template": template}, KUBERNETES, strict=True)


def cluster_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The spec of its Ray cluster."""
    key = CLUSTER_KEY.get(manifest["kind"])
    spec: dict[str, Any] = manifest["spec"]
    return spec if key is None else spec[key]


def pod_templates(cluster: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]
