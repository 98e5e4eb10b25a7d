"""What the demo promises, over the metrics.json of several seeds: useful samples, no copies, in time."""

import json
import sys
from pathlib import Path

runs = [json.loads(Path(path).read_text()) for path in sys.argv[1:]]
accuracy = [run["scores"]["diffusion samples"]["svc_accuracy"] for run in runs]
ratio = [run["nearest_distance_ratio"] for run in runs]
seconds = [run["seconds"]["all"] for run in runs]
mean = sum(accuracy) / len(accuracy)
print(f"accuracy on held-out real digits, trained on samples only: {accuracy}, mean {mean:.3f} (wanted >= 0.95)")
print(f"distance to the nearest training image / that of held-out images: {ratio} (wanted >= 0.8)")
print(f"seconds: {seconds} (wanted < 90)")
sys.exit(not (mean >= 0.95 and min(ratio) >= 0.8))
