from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Detail(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DETAIL_UNSPECIFIED: _ClassVar[Detail]
    DETAIL_FULL: _ClassVar[Detail]
    DETAIL_COARSE: _ClassVar[Detail]
    DETAIL_NONE: _ClassVar[Detail]
DETAIL_UNSPECIFIED: Detail
DETAIL_FULL: Detail
DETAIL_COARSE: Detail
DETAIL_NONE: Detail

class Tensor(_message.Message):
    __slots__ = ("name", "datatype", "shape", "data")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ...) -> None: ...

class Pixels(_message.Message):
    __slots__ = ("count", "height", "width", "channels", "data")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    count: int
    height: int
    width: int
    channels: int
    data: bytes
    def __init__(self, count: _Optional[int] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class EncodedImages(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, images: _Optional[_Iterable[bytes]] = ...) -> None: ...

class InspectRequest(_message.Message):
    __slots__ = ("model", "id", "tensor", "pixels", "encoded", "outputs", "all_outputs")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    PIXELS_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    ALL_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    model: str
    id: str
    tensor: Tensor
    pixels: Pixels
    encoded: EncodedImages
    outputs: _containers.RepeatedScalarFieldContainer[str]
    all_outputs: bool
    def __init__(self, model: _Optional[str] = ..., id: _Optional[str] = ..., tensor: _Optional[_Union[Tensor, _Mapping]] = ..., pixels: _Optional[_Union[Pixels, _Mapping]] = ..., encoded: _Optional[_Union[EncodedImages, _Mapping]] = ..., outputs: _Optional[_Iterable[str]] = ..., all_outputs: _Optional[bool] = ...) -> None: ...

class InspectResponse(_message.Message):
    __slots__ = ("id", "model", "guard", "detail", "prediction", "is_adversarial", "likelihood", "score", "p_value", "evidence", "withheld", "unscored", "outputs", "timing", "capture", "look")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    GUARD_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    PREDICTION_FIELD_NUMBER: _ClassVar[int]
    IS_ADVERSARIAL_FIELD_NUMBER: _ClassVar[int]
    LIKELIHOOD_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    P_VALUE_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    WITHHELD_FIELD_NUMBER: _ClassVar[int]
    UNSCORED_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    CAPTURE_FIELD_NUMBER: _ClassVar[int]
    LOOK_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    guard: str
    detail: Detail
    prediction: _containers.RepeatedScalarFieldContainer[int]
    is_adversarial: _containers.RepeatedScalarFieldContainer[bool]
    likelihood: _containers.RepeatedScalarFieldContainer[float]
    score: _containers.RepeatedScalarFieldContainer[float]
    p_value: _containers.RepeatedScalarFieldContainer[float]
    evidence: Tensor
    withheld: _containers.RepeatedScalarFieldContainer[bool]
    unscored: _containers.RepeatedScalarFieldContainer[bool]
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    timing: Timing
    capture: str
    look: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., guard: _Optional[str] = ..., detail: _Optional[_Union[Detail, str]] = ..., prediction: _Optional[_Iterable[int]] = ..., is_adversarial: _Optional[_Iterable[bool]] = ..., likelihood: _Optional[_Iterable[float]] = ..., score: _Optional[_Iterable[float]] = ..., p_value: _Optional[_Iterable[float]] = ..., evidence: _Optional[_Union[Tensor, _Mapping]] = ..., withheld: _Optional[_Iterable[bool]] = ..., unscored: _Optional[_Iterable[bool]] = ..., outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., capture: _Optional[str] = ..., look: _Optional[_Iterable[int]] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("decode_ms", "queue_ms", "model_ms")
    DECODE_MS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_MS_FIELD_NUMBER: _ClassVar[int]
    MODEL_MS_FIELD_NUMBER: _ClassVar[int]
    decode_ms: float
    queue_ms: float
    model_ms: float
    def __init__(self, decode_ms: _Optional[float] = ..., queue_ms: _Optional[float] = ..., model_ms: _Optional[float] = ...) -> None: ...

class Error(_message.Message):
    __slots__ = ("code", "message")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ...) -> None: ...

class InspectStreamResponse(_message.Message):
    __slots__ = ("response", "error", "id")
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    response: InspectResponse
    error: Error
    id: str
    def __init__(self, response: _Optional[_Union[InspectResponse, _Mapping]] = ..., error: _Optional[_Union[Error, _Mapping]] = ..., id: _Optional[str] = ...) -> None: ...

class DescribeRequest(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: str
    def __init__(self, model: _Optional[str] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("name", "height", "width", "channels", "layout", "datatype", "scale", "mean", "std", "bgr")
    NAME_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STD_FIELD_NUMBER: _ClassVar[int]
    BGR_FIELD_NUMBER: _ClassVar[int]
    name: str
    height: int
    width: int
    channels: int
    layout: str
    datatype: str
    scale: float
    mean: _containers.RepeatedScalarFieldContainer[float]
    std: _containers.RepeatedScalarFieldContainer[float]
    bgr: bool
    def __init__(self, name: _Optional[str] = ..., height: _Optional[int] = ..., width: _Optional[int] = ..., channels: _Optional[int] = ..., layout: _Optional[str] = ..., datatype: _Optional[str] = ..., scale: _Optional[float] = ..., mean: _Optional[_Iterable[float]] = ..., std: _Optional[_Iterable[float]] = ..., bgr: _Optional[bool] = ...) -> None: ...

class TensorInfo(_message.Message):
    __slots__ = ("name", "datatype", "shape")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ...) -> None: ...

class Threshold(_message.Message):
    __slots__ = ("target_fpr", "score", "by_class", "second_score", "second_by_class", "lowest", "highest")
    TARGET_FPR_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    BY_CLASS_FIELD_NUMBER: _ClassVar[int]
    SECOND_SCORE_FIELD_NUMBER: _ClassVar[int]
    SECOND_BY_CLASS_FIELD_NUMBER: _ClassVar[int]
    LOWEST_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_FIELD_NUMBER: _ClassVar[int]
    target_fpr: float
    score: float
    by_class: _containers.RepeatedScalarFieldContainer[float]
    second_score: float
    second_by_class: _containers.RepeatedScalarFieldContainer[float]
    lowest: float
    highest: float
    def __init__(self, target_fpr: _Optional[float] = ..., score: _Optional[float] = ..., by_class: _Optional[_Iterable[float]] = ..., second_score: _Optional[float] = ..., second_by_class: _Optional[_Iterable[float]] = ..., lowest: _Optional[float] = ..., highest: _Optional[float] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_rows", "max_message_bytes", "max_pixels", "max_connections", "max_streams", "max_open_streams", "max_calls", "max_bytes_in_flight", "memory_bytes", "watch_bytes")
    MAX_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONNECTIONS_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_OPEN_STREAMS_FIELD_NUMBER: _ClassVar[int]
    MAX_CALLS_FIELD_NUMBER: _ClassVar[int]
    MAX_BYTES_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    WATCH_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_rows: int
    max_message_bytes: int
    max_pixels: int
    max_connections: int
    max_streams: int
    max_open_streams: int
    max_calls: int
    max_bytes_in_flight: int
    memory_bytes: int
    watch_bytes: int
    def __init__(self, max_rows: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_pixels: _Optional[int] = ..., max_connections: _Optional[int] = ..., max_streams: _Optional[int] = ..., max_open_streams: _Optional[int] = ..., max_calls: _Optional[int] = ..., max_bytes_in_flight: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., watch_bytes: _Optional[int] = ...) -> None: ...

class DescribeResponse(_message.Message):
    __slots__ = ("model", "models", "model_sha256", "guard", "guard_created_at", "input", "inputs", "outputs", "thresholds", "taps", "policy", "detail", "limits", "server_version", "target_fpr", "thresholds_by_class", "looks")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    MODEL_SHA256_FIELD_NUMBER: _ClassVar[int]
    GUARD_FIELD_NUMBER: _ClassVar[int]
    GUARD_CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_FIELD_NUMBER: _ClassVar[int]
    TAPS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    SERVER_VERSION_FIELD_NUMBER: _ClassVar[int]
    TARGET_FPR_FIELD_NUMBER: _ClassVar[int]
    THRESHOLDS_BY_CLASS_FIELD_NUMBER: _ClassVar[int]
    LOOKS_FIELD_NUMBER: _ClassVar[int]
    model: str
    models: _containers.RepeatedScalarFieldContainer[str]
    model_sha256: str
    guard: str
    guard_created_at: str
    input: Input
    inputs: _containers.RepeatedCompositeFieldContainer[TensorInfo]
    outputs: _containers.RepeatedCompositeFieldContainer[TensorInfo]
    thresholds: _containers.RepeatedCompositeFieldContainer[Threshold]
    taps: _containers.RepeatedScalarFieldContainer[str]
    policy: str
    detail: Detail
    limits: Limits
    server_version: str
    target_fpr: float
    thresholds_by_class: bool
    looks: str
    def __init__(self, model: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., model_sha256: _Optional[str] = ..., guard: _Optional[str] = ..., guard_created_at: _Optional[str] = ..., input: _Optional[_Union[Input, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[TensorInfo, _Mapping]]] = ..., outputs: _Optional[_Iterable[_Union[TensorInfo, _Mapping]]] = ..., thresholds: _Optional[_Iterable[_Union[Threshold, _Mapping]]] = ..., taps: _Optional[_Iterable[str]] = ..., policy: _Optional[str] = ..., detail: _Optional[_Union[Detail, str]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., server_version: _Optional[str] = ..., target_fpr: _Optional[float] = ..., thresholds_by_class: _Optional[bool] = ..., looks: _Optional[str] = ...) -> None: ...

class Label(_message.Message):
    __slots__ = ("id", "label")
    ID_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    id: str
    label: str
    def __init__(self, id: _Optional[str] = ..., label: _Optional[str] = ...) -> None: ...

class FeedbackRequest(_message.Message):
    __slots__ = ("labels",)
    LABELS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedCompositeFieldContainer[Label]
    def __init__(self, labels: _Optional[_Iterable[_Union[Label, _Mapping]]] = ...) -> None: ...

class FeedbackResponse(_message.Message):
    __slots__ = ("labelled",)
    LABELLED_FIELD_NUMBER: _ClassVar[int]
    labelled: int
    def __init__(self, labelled: _Optional[int] = ...) -> None: ...
