"""How many bytes a request of each method may have. A longer one is refused before it is decoded.

A method without a row here cannot be registered. The limits leave room above what clients send: a name has up
to 1 KiB in UTF-8; the parameters of a job have 64 KiB, and clients repeat them as JSON inside JSON.
Messages with repeated fields have tight limits, since every two bytes of them can become an object.
"""

from collections.abc import Mapping
from typing import Final

from fedcombiner.wire.chunks import CHUNK_SIZE

KIB: Final = 1 << 10
MIB: Final = 1 << 20

# Names, ids and a few numbers.
SHORT: Final = 8 * KIB
# Lists of values that a client reports.
REPORT: Final = 256 * KIB
# JSON of clients, in one flat field. Above the limit of a field they are rejected by name.
TEXT: Final = MIB + 128 * KIB
# Answers of validations, of which the ones above 64 KiB are recorded as too large.
ANSWER: Final = 4 * MIB
# Parameters: at most 65,536 characters, of up to four bytes, and what the fields around each cost.
PARAMETERS: Final = 512 * KIB
# Ids of models or clients, some tens of thousands.
LIST: Final = MIB
# Chunks that others cut: four of ours, and room for the fields around the data.
CHUNK: Final = 4 * CHUNK_SIZE + 64 * KIB

MAX_REQUEST_BYTES: Final[Mapping[str, Mapping[str, int]]] = {
    "Connector": {
        "AllianceStatusStream": SHORT,
        "SendHeartbeat": SHORT,
        "ReassignClient": SHORT,
        "ReconnectClient": SHORT,
        "AcceptingClients": SHORT,
        "SendStatus": TEXT,
        "ListActiveClients": SHORT,
        "SendModelMetric": REPORT,
    },
    "Combiner": {
        "ModelUpdateRequestStream": SHORT,
        "ModelUpdateStream": SHORT,
        "ModelValidationRequestStream": SHORT,
        "ModelValidationStream": SHORT,
        "TaskStream": SHORT,
        "SendModelUpdateRequest": TEXT,
        "SendModelUpdate": TEXT,
        "SendModelValidationRequest": TEXT,
        "SendModelValidation": ANSWER,
        "SendModelPrediction": ANSWER,
        "SendBackwardCompletion": REPORT,
        "SendModelMetric": REPORT,
        "SendAttributeMessage": REPORT,
        "SendTelemetryMessage": REPORT,
    },
    "ModelService": {"Upload": CHUNK, "Download": SHORT},
    "Control": {
        "Start": PARAMETERS,
        "Stop": PARAMETERS,
        "Configure": PARAMETERS,
        "FlushAggregationQueue": PARAMETERS,
        "Report": PARAMETERS,
        "SetAggregator": PARAMETERS,
        "SetServerFunctions": PARAMETERS,
    },
    "Reducer": {"GetGlobalModel": SHORT},
    "Jobs": {"Get": SHORT, "Answers": SHORT, "List": SHORT, "Watch": SHORT, "Cancel": SHORT},
    "Sessions": {"Start": PARAMETERS, "Get": SHORT, "List": SHORT, "Watch": SHORT, "Cancel": SHORT},
    "Models": {"Put": SHORT, "List": SHORT, "Get": SHORT},
    "Clients": {"List": LIST},
    "Events": {"Watch": SHORT},
    "Upkeep": {"Status": SHORT, "Collect": SHORT, "Prune": LIST, "Backup": SHORT, "Restore": CHUNK},
    "Tokens": {"Create": REPORT, "List": SHORT, "Revoke": SHORT},
}
"""By the short name of the service, and the method's."""
