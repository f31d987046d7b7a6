"""Students as programs for serving: torch.export, AOTInductor, ONNX."""

from abkd_fast.export.files import Exported as Exported
from abkd_fast.export.files import load_export as load_export
from abkd_fast.export.server import ExportedServer as ExportedServer
from abkd_fast.export.write import FORMATS as FORMATS
from abkd_fast.export.write import export_student as export_student
