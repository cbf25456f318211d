from auroraedge._proto.inspection.v1 import admin_pb2 as _admin_pb2
from auroraedge._proto.inspection.v1 import inspection_pb2 as _inspection_pb2
from auroraedge._proto.inspection.v1 import results_pb2 as _results_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
