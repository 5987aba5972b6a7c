"""What one types: the last lines of each command's help. A test reads every one of them."""

from collections.abc import Mapping

__all__ = ["EXAMPLES"]

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "": (
        "reluguard demo",
        "reluguard fit --model model.onnx --data images.npz --out guards/mine",
        "reluguard serve --model model.onnx --guard guards/mine",
        "reluguard fit --help",
    ),
    "demo": ("reluguard demo", "reluguard demo --json --out out/demo"),
    "try": (
        "reluguard try",
        "reluguard try --model model.onnx --guard guards/mine --data images.npz",
    ),
    "fit": (
        "reluguard fit --model model.onnx --data images.npz --out guards/mine --recipe quick",
        (
            "reluguard fit --model model.onnx --data photographs --out guards/mine \\\n"
            "      --preprocessing torchvision --classes classes.txt"
        ),
        "reluguard fit --model model.onnx --data images.npz --out guards/mine --twin net:build",
        "reluguard fit --model net.py:build --data images.npz --out guards/mine",
        (
            "reluguard fit --model torchvision:resnet18 --weights resnet18.pth \\\n"
            "      --data photographs --out guards/mine"
        ),
    ),
    "score": (
        (
            "reluguard score --model model.onnx --guard guards/mine --data images.npz \\\n"
            "      --out verdicts.npz"
        ),
    ),
    "evaluate": (
        (
            "reluguard evaluate --model model.onnx --guard guards/mine --data unseen.npz \\\n"
            "      --out judged --limit 200"
        ),
        (
            "reluguard evaluate --model model.onnx --guard guards/mine --data unseen.npz \\\n"
            "      --out judged --attack pgd-linf-2 --attack mine:Stripes --matrix-rows 0"
        ),
    ),
    "redteam": (
        (
            "reluguard redteam --model model.onnx --guard guards/mine --data unseen.npz \\\n"
            "      --out attacked --limit 40"
        ),
        (
            "reluguard redteam --model model.onnx --guard guards/mine --data unseen.npz \\\n"
            "      --out attacked --standard --publish"
        ),
    ),
    "export": ("reluguard export --model model.onnx --guard guards/mine --out guarded.onnx",),
    "serve": (
        "reluguard serve --model model.onnx --guard guards/mine",
        "reluguard serve --guard guards/mine",
        (
            "reluguard serve --model model.onnx --guard guards/shelf --host 0.0.0.0 \\\n"
            "      --tls-certificate tls.crt --tls-key tls.key --tokens tokens.toml"
        ),
        "reluguard serve --config server.toml --check-config",
        "reluguard serve --model model.onnx --guard guards/mine --set capture=captured",
    ),
    "health": (
        "reluguard health",
        "reluguard health --address localhost:50051 --ca tls.crt",
    ),
    "bench": (
        "reluguard bench --model model.onnx --guard guards/mine",
        "reluguard bench --model model.onnx --guard guards/mine --batch 1 --batch 64 --json",
    ),
    "analyze": ("reluguard analyze --model model.onnx --data images.npz --out looked --limit 500",),
    "explain": (
        (
            "reluguard explain picture.png --model model.onnx --guard guards/mine \\\n"
            "      --data images.npz --out explanation.png"
        ),
    ),
    "harden": (
        "reluguard harden --model model.onnx --data train.npz --out hardened",
        "reluguard harden --model net.py:build --data train.npz --out hardened",
    ),
    "retrain": (
        (
            "reluguard retrain --guard guards/mine --model model.onnx --new captured \\\n"
            "      --out guards/next"
        ),
        (
            "reluguard retrain --guard guards/mine --model model.onnx --attack mine:Stripes \\\n"
            "      --out guards/next"
        ),
    ),
    "promote": (
        'reluguard promote --shelf guards/shelf --guard guards/next --why "patches of last week"',
        'reluguard promote --shelf guards/shelf --guard guards/next --why "a try" --shadow',
        'reluguard promote --shelf guards/shelf --why "the challenger did well"',
    ),
    "shadow": (
        'reluguard shadow --shelf guards/shelf --guard guards/next --why "a try"',
        'reluguard shadow --shelf guards/shelf --clear --why "enough seen"',
    ),
    "rollback": ('reluguard rollback --shelf guards/shelf --why "too many alarms"',),
    "status": (
        "reluguard status --shelf guards/shelf --captures captured",
        "reluguard status --server localhost:9464",
    ),
    "label": (
        "reluguard label list --captures captured --unlabelled",
        "reluguard label export sheet.csv --captures captured",
        "reluguard label import sheet.csv --captures captured --labeller ann",
    ),
    "label list": ("reluguard label list --captures captured --unlabelled --source upload-2",),
    "label show": (
        "reluguard label show ID --captures captured --guard guards/shelf --out seen.png",
    ),
    "label export": ("reluguard label export sheet.csv --captures captured",),
    "label import": ("reluguard label import sheet.csv --captures captured --labeller ann",),
    "label set": (
        "reluguard label set ID clean --captures captured",
        "reluguard label set ID attack:patch --captures captured --labeller ann",
    ),
}
