"""Official checkpoints to this project's parameter trees and back."""
