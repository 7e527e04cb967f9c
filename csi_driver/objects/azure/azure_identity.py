"""The node's own identity at Azure: of its environment, its workload, or its machine."""

from __future__ import annotations

import azure.core.exceptions
import azure.identity

from csi_driver.model.errors import CredentialsRejected
from csi_driver.objects.bearer_tokens import BearerToken, BearerTokens

SCOPE = "https://storage.azure.com/.default"


def node_tokens() -> BearerTokens:
    """Sends nothing before the first token is needed."""
    credential = azure.identity.DefaultAzureCredential(
        # What is left: a service principal of the environment, the workload, the machine.
        exclude_developer_cli_credential=True,
        exclude_cli_credential=True,
        exclude_powershell_credential=True,
        exclude_shared_token_cache_credential=True,
        exclude_visual_studio_code_credential=True,
        exclude_interactive_browser_credential=True,
    )

    def request() -> BearerToken:
        try:
            token = credential.get_token(SCOPE)
        except (azure.core.exceptions.AzureError, ValueError, OSError) as error:
            raise CredentialsRejected(
                f"the node's own credentials for Azure cannot be used ({type(error).__name__}); give the volume a "
                "secret, give the node an identity, or set anonymous for a public container"
            ) from None
        return BearerToken(token.token, float(token.expires_on))

    return BearerTokens(request)
