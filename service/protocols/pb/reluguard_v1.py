"""Made by proto/generate.py from reluguard/v1/reluguard.proto. Don't edit."""

from reluguard.service.protocols.descriptors import message_class

Tensor = message_class("reluguard.v1.Tensor")
Pixels = message_class("reluguard.v1.Pixels")
EncodedImages = message_class("reluguard.v1.EncodedImages")
InspectRequest = message_class("reluguard.v1.InspectRequest")
InspectResponse = message_class("reluguard.v1.InspectResponse")
Timing = message_class("reluguard.v1.Timing")
Error = message_class("reluguard.v1.Error")
InspectStreamResponse = message_class("reluguard.v1.InspectStreamResponse")
DescribeRequest = message_class("reluguard.v1.DescribeRequest")
Input = message_class("reluguard.v1.Input")
TensorInfo = message_class("reluguard.v1.TensorInfo")
Threshold = message_class("reluguard.v1.Threshold")
Limits = message_class("reluguard.v1.Limits")
DescribeResponse = message_class("reluguard.v1.DescribeResponse")
Label = message_class("reluguard.v1.Label")
FeedbackRequest = message_class("reluguard.v1.FeedbackRequest")
FeedbackResponse = message_class("reluguard.v1.FeedbackResponse")
DETAIL_UNSPECIFIED = 0
DETAIL_FULL = 1
DETAIL_COARSE = 2
DETAIL_NONE = 3
